"""``make demo``: a real MCP server behind a real policy, shown call by call."""
