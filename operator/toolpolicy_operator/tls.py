"""A TLS context of a server whose certificate changes without a refused connection.

``ssl`` reads certificates from files only and a context that serves can't be taken from its listener. So the listener
keeps one context, and its callback, which OpenSSL calls for every handshake (with or without a server name), moves the
handshake to the context in use. Handshakes under way keep the one they began with; a pair that can't be loaded never
gets that far.
"""

from __future__ import annotations

import os
import ssl

from toolpolicy_operator.pki import CertificateFault, Pair, check_pair, describe


class ReloadingContext:
    """``listener`` is what a server listens with; :meth:`use` changes what it presents from the next handshake on."""

    def __init__(self) -> None:
        self.listener = _context()
        self.listener.sni_callback = self._choose
        self._current: ssl.SSLContext | None = None
        self._pair: Pair | None = None

    @property
    def pair(self) -> Pair | None:
        """What is presented now; None before the first :meth:`use`: every handshake fails until then."""
        return self._pair

    def use(self, pair: Pair) -> bool:
        """Present ``pair`` from now on; False if it was in use already. Raises :class:`CertificateFault`, and then
        nothing changes.
        """
        if pair == self._pair:
            return False
        check_pair(pair)
        context = _context()
        certificate, key = _in_memory(pair.certificate), _in_memory(pair.key)
        try:
            context.load_cert_chain(f"/proc/self/fd/{certificate}", f"/proc/self/fd/{key}")
        except (ssl.SSLError, OSError) as error:
            raise CertificateFault(f"{describe(pair.certificate)}: TLS can't use it: {error}") from None
        finally:
            os.close(certificate)
            os.close(key)
        self._current, self._pair = context, pair
        return True

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        del name, context
        if self._current is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._current
        return None


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A resumed session would show a certificate that has been replaced.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


def _in_memory(text: str) -> int:
    """A descriptor of memory that holds ``text``: no key is ever on a disk."""
    descriptor = os.memfd_create("toolpolicy", os.MFD_CLOEXEC)
    with open(descriptor, "w", encoding="ascii", closefd=False) as file:
        file.write(text)
    return descriptor
