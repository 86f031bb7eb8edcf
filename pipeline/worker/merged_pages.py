"""One page of metrics, and one verdict, made of those of several worker processes."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "process"


class MergedPages(Collector):
    """Every series of several pages, each with the number of its process as a label.

    Args:
        read: Gives the pages by number whenever the metrics are read.
    """

    def __init__(self, read: Callable[[], Mapping[int, str]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: there may be no page yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Give the series, those of one metric together."""
        families: dict[str, Metric] = {}
        for number, page in self._read().items():
            for family in text_string_to_metric_families(page):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                merged.samples += [
                    sample._replace(labels={LABEL: str(number), **sample.labels})
                    for sample in family.samples
                ]
        yield from families.values()


def merged_verdict(verdicts: Mapping[int, tuple[bool, str]]) -> tuple[bool, str]:
    """Return yes where all say yes, and what each says in one line."""
    lines = [f"process {number}: {line}" for number, (_, line) in verdicts.items()]
    return all(good for good, _ in verdicts.values()), "; ".join(lines)
