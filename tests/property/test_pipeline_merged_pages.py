"""Laws of the one page that several worker processes have."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.metrics import Metrics
from pipeline.worker.merged_pages import MergedPages


@given(counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=4))
def test_a_merged_page_holds_every_series_once_for_each_process(counts: list[int]) -> None:
    """Read back by Prometheus' own parser, each process has the figures of its own page."""
    pages = {}
    for number, count in enumerate(counts):
        registry = CollectorRegistry()
        metrics = Metrics(registry)
        metrics.events["applied"].inc(count)
        metrics.stage_seconds["rank"].observe(count)
        metrics.set_lag({number: count})
        pages[number] = generate_latest(registry).decode()
    merged = CollectorRegistry()
    merged.register(MergedPages(lambda: pages))

    page = generate_latest(merged).decode()

    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    lines = page.splitlines()
    for name in ("lrurec_events_total", "lrurec_stage_seconds_sum", "lrurec_consumer_lag_events"):
        assert sum(s.value for s in samples if s.name == name) == sum(counts)
    total = sum(len([x for x in one.splitlines() if x[0] != "#"]) for one in pages.values())
    assert len({(s.name, tuple(sorted(s.labels.items()))) for s in samples}) == total
    applied = [s for s in samples if s.labels.get("result") == "applied"]
    by_process = {s.labels["process"]: s.value for s in applied if s.name == "lrurec_events_total"}
    assert by_process == {str(number): count for number, count in enumerate(counts)}
    assert len([x for x in lines if x.startswith("# TYPE lrurec_events_total ")]) == 1
