"""What the names of tools say: agreement with labelled names, and the rules of language one by one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolpolicy.policy.classify import DEFAULT_RISK, Classification, classify, raise_by_annotations
from toolpolicy.policy.grammar import STRICTNESS, stricter
from toolpolicy.policy.model import Category, Risk
from toolpolicy.policy.morphology import split

DATA = Path(__file__).parents[2] / "data"
STRICT = {Category.DESTRUCTIVE, Category.EXECUTE, Category.FINANCIAL}
READ, WRITE, EXECUTE, DESTRUCTIVE, FINANCIAL = Category


def labelled(file: str) -> list[tuple[str, Category]]:
    with (DATA / file).open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return [(row["tool"], Category(row["category"])) for row in rows if row["category"] != "Other"]


@pytest.mark.parametrize(("file", "least"), [("tool-categories.tsv", 0.95), ("classify-heldout.tsv", 0.95)])
def test_agrees_with_labelled_names(file: str, least: float) -> None:
    names = labelled(file)
    wrong = [(name, label, classify(name).category) for name, label in names if classify(name).category is not label]
    assert len(names) >= 270
    assert 1 - len(wrong) / len(names) >= least, wrong


@pytest.mark.parametrize("file", ["tool-categories.tsv", "classify-heldout.tsv"])
def test_nothing_strict_is_called_read(file: str) -> None:
    assert [n for n, label in labelled(file) if label in STRICT and classify(n).category is READ] == []


@pytest.mark.parametrize(
    ("category", "names"),
    [
        # one verb in every way of writing it
        (
            DESTRUCTIVE,
            "deleteFile DeleteFile delete_file delete-file files.delete files/delete files:delete DELETE_FILE",
        ),
        (DESTRUCTIVE, "mcp__files__delete_file fileDelete deletefile delete2 deletes_file deleting_files bulkdelete"),
        (READ, "getURL GetHTTPResponse S3.listBuckets listAPIs getS3Object2 mcp__docker-exec__list_images"),
        # what a reading verb heads is a noun, unless it can't be
        (
            READ,
            "list_runs get_execution get_last_update get_delete_status get_delete_marker get_termination_protection",
        ),
        (READ, "list_deleted_items get_removed_users deleted_items order_history run_status build_logs is_deleted"),
        (WRITE, "get_or_create find_and_replace search_replace read_write_file"),
        (DESTRUCTIVE, "list_and_purge find_then_delete get_delete_file fetch_purge"),
        (EXECUTE, "read_and_execute fetch_and_run get_exec"),
        # taking back
        (
            WRITE,
            "undelete unstar restore restore_deleted deactivate unarchive cancel_key_deletion undo_delete",
        ),
        (
            DESTRUCTIVE,
            "uninstall unregister deregister_image schedule_key_deletion request_deletion purge_deleted_secret",
        ),
        (WRITE, "set_deletion_policy disable_deletion_protection delete_protection_enable update_delete_protection"),
        # nouns that look like verbs
        (WRITE, "update_history create_trigger create_script update_call add_comment"),
        (READ, "issue_read label_list pull_request_read message_search imageSetGet search_image_sets"),
        (EXECUTE, "query sql_query run_query query_database execute_sql graphql_query db.query"),
        (READ, "query_metrics read_query search_query_logs"),
        # money
        (FINANCIAL, "pay charge_card create_refund transfer_funds list_charges payment_methods list_transactions"),
        (FINANCIAL, "place_order cancel_order buy_stock send_money withdraw mint_token close_position pay_or_create"),
        (READ, "get_order list_orders retrieve_balance list_prices get_battery_charge azmcp_subscription_list"),
        (WRITE, "transfer_ownership git_checkout"),
        (DESTRUCTIVE, "delete_invoice delete_payment_method pay_and_delete"),
        # the running example
        (EXECUTE, "start_dicom_import_job start_dicom_export_job"),
        (DESTRUCTIVE, "delete_datastore delete_image_set bulk_delete_by_criteria remove_series_from_image_set"),
        (WRITE, "create_datastore update_image_set_metadata copy_image_set bulk_update_patient_metadata tag_resource"),
        (WRITE, "untag_resource"),
        (
            READ,
            "get_image_set list_image_set_versions list_tags_for_resource get_dicom_export_job list_dicom_import_jobs",
        ),
        # objects decide
        (EXECUTE, "send_command submit_job create_run make_api_request apply_migration mouse_move scan_ports"),
        (DESTRUCTIVE, "format_disk move_to_trash factory_reset clear_cache reset_database"),
        (WRITE, "reset_password format_code resolve_incident"),
        # reading words that may be nouns themselves, and unknown verbs before nouns to look at
        (DESTRUCTIVE, "list_clear search_index_reset search_delete_records nullify_data"),
        (EXECUTE, "compute_instances_stop automated_deployment exfiltrate_data deploy_docs process_results frob_data"),
        (READ, "list_run search_post get_password_reset build_get_status kubectl_logs logs tables order_details"),
        (FINANCIAL, "capture_order collect_payment"),
        # names that say nothing
        (EXECUTE, "x foo data_thing users 42 _ - sequentialthinking deletion_policy"),
        (EXECUTE, "löschen список_файлов get_café 工具 🔥"),
    ],
)
def test_rules_of_language(category: Category, names: str) -> None:
    assert {name: classify(name).category.value for name in names.split()} == dict.fromkeys(
        names.split(), category.value
    )


def test_odd_characters_hide_no_verb() -> None:
    assert classify("ＤＥＬＥＴＥ_file").category is DESTRUCTIVE
    assert classify("delete\u200b_file").category is DESTRUCTIVE
    assert classify("get\u200b_file").category is EXECUTE
    assert classify("get d\u0435lete").category is EXECUTE


def test_empty_and_long_names() -> None:
    assert classify("").category is EXECUTE
    assert classify("get_" + "x" * 1_000_000).category is EXECUTE
    assert classify("delete_" + "x" * 1_000_000).category is DESTRUCTIVE
    assert classify("a" * 300_000 + "_delete").category is EXECUTE


@given(st.text(max_size=300))
def test_every_name_has_an_answer(name: str) -> None:
    first = classify(name)
    assert first == classify(name)
    if not name.isascii():
        assert first.category is not READ
        assert first.category is not WRITE


@given(
    st.sampled_from(["delete", "purge", "execute", "pay", "destroy", "invoke"]), st.sampled_from(["and", "or", "then"])
)
def test_a_joined_verb_always_speaks(verb: str, joint: str) -> None:
    assert classify(f"get_item_{joint}_{verb}").category in STRICT
    assert classify(f"list{joint.title()}{verb.title()}Status").category in STRICT


@pytest.mark.parametrize(
    ("name", "risk"),
    [
        ("list_files", Risk.LOW),
        ("create_file", Risk.MEDIUM),
        ("run_job", Risk.HIGH),
        ("delete_file", Risk.HIGH),
        ("get_secret_value", Risk.HIGH),
        ("list_api_keys", Risk.HIGH),
        ("get_access_token", Risk.HIGH),
        ("read_password", Risk.HIGH),
        ("get_credentials", Risk.HIGH),
        ("list_secret_scanning_alerts", Risk.LOW),
        ("count_tokens", Risk.LOW),
        ("delete_database", Risk.CRITICAL),
        ("drop_table", Risk.CRITICAL),
        ("delete_cluster", Risk.CRITICAL),
        ("close_and_delete_account", Risk.CRITICAL),
        ("delete_datastore", Risk.CRITICAL),
        ("delete_all_files", Risk.CRITICAL),
        ("transfer_funds", Risk.CRITICAL),
        ("create_payment", Risk.CRITICAL),
        ("list_invoices", Risk.MEDIUM),
        ("execute_command", Risk.CRITICAL),
        ("deploy_prod", Risk.CRITICAL),
        ("grant_role", Risk.HIGH),
    ],
)
def test_risk(name: str, risk: Risk) -> None:
    assert classify(name).risk is risk


@pytest.mark.parametrize(
    ("name", "annotations", "category", "risk"),
    [
        ("get_x", {}, READ, Risk.LOW),
        ("get_x", {"readOnlyHint": True, "destructiveHint": False}, READ, Risk.LOW),
        ("get_x", {"readOnlyHint": False}, WRITE, Risk.MEDIUM),
        ("get_x", {"readOnlyHint": None, "destructiveHint": None}, READ, Risk.LOW),
        ("get_x", {"destructiveHint": True}, DESTRUCTIVE, Risk.HIGH),
        ("get_x", {"readOnlyHint": "no", "destructiveHint": "yes"}, DESTRUCTIVE, Risk.HIGH),
        ("get_secret", {"readOnlyHint": False}, WRITE, Risk.HIGH),
        ("run_x", {"readOnlyHint": True}, EXECUTE, Risk.HIGH),
        ("delete_x", {"readOnlyHint": True, "destructiveHint": False}, DESTRUCTIVE, Risk.HIGH),
        ("list_invoices", {"destructiveHint": True}, FINANCIAL, Risk.CRITICAL),
        ("delete_database", {"destructiveHint": True}, DESTRUCTIVE, Risk.CRITICAL),
    ],
)
def test_annotations_raise_and_never_lower(
    name: str, annotations: dict[str, object], category: Category, risk: Risk
) -> None:
    assert raise_by_annotations(classify(name), annotations) == Classification(category, risk)


@given(
    st.sampled_from(["get_x", "create_x", "run_x", "pay_x", "delete_x"]),
    st.dictionaries(
        st.sampled_from(["readOnlyHint", "destructiveHint", "idempotentHint"]),
        st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=1),
    ),
)
def test_no_annotation_lowers(name: str, annotations: dict[str, object]) -> None:
    before = classify(name)
    after = raise_by_annotations(before, annotations)
    assert STRICTNESS[after.category] >= STRICTNESS[before.category]
    assert list(Risk).index(after.risk) >= list(Risk).index(before.risk)


def test_order_of_strictness() -> None:
    assert stricter(READ, WRITE) is WRITE
    assert stricter(EXECUTE, WRITE) is EXECUTE
    assert stricter(FINANCIAL, DESTRUCTIVE) is FINANCIAL
    assert stricter(DESTRUCTIVE, FINANCIAL) is DESTRUCTIVE
    assert set(DEFAULT_RISK) == set(Category)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("getHTTPServer2", ["get", "http", "server"]),
        ("list-APIs", ["list", "apis"]),
        ("mcp__some__server__do_it", ["server", "do", "it"]),
        ("get_pull_request", ["get", "pullrequest"]),
        ("EC2.TerminateInstances", ["ec", "terminate", "instances"]),
        ("", []),
    ],
)
def test_split(name: str, words: list[str]) -> None:
    assert split(name) == words
