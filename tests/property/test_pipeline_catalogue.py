"""What may not be recommended: against a dict, whatever the items topic says and repeats."""

from types import SimpleNamespace
from typing import Any

import msgspec
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.vocabulary import Vocabulary, item_hash
from pipeline.worker.catalogue import Catalogue

ITEMS = [f"item-{number}" for number in range(5)]

values = st.none() | st.sampled_from([{}, {"available": True}, {"available": False}])
records = st.lists(st.tuples(st.sampled_from(ITEMS), values, st.booleans()), max_size=20)


def model_of(weights_id: int, item_ids: list[str]) -> Any:
    """What a catalogue asks of a served model."""
    vocabulary = Vocabulary(item_ids, [1] * len(item_ids))
    return SimpleNamespace(
        weights_id=weights_id,
        release=SimpleNamespace(vocabulary=vocabulary),
        hashes=vocabulary.hashes,
        serving=SimpleNamespace(device=torch.device("cpu")),
    )


MODELS = [(model_of(1, ITEMS[:3]), ITEMS[:3]), (model_of(2, ITEMS[3:1:-1]), ITEMS[3:1:-1])]


@given(records)
def test_the_last_record_of_an_item_says_whether_it_is_available(
    records: list[tuple[str, dict[str, bool] | None, bool]],
) -> None:
    """In the order of each release, which may not know all of them; None where it knows none."""
    catalogue, said = Catalogue(), dict[str, bool]()
    for item, value, is_asked in records:
        catalogue.apply(item.encode(), None if value is None else msgspec.json.encode(value))
        said[item] = value is not None and value.get("available", True)
        gone = {item for item, is_available in said.items() if not is_available}
        assert catalogue.unavailable_hashes() == {item_hash(item) for item in gone}
        for model, item_ids in MODELS if is_asked else []:
            flags = [False, *(item in gone for item in item_ids)]
            mask = catalogue.unavailable(model)
            assert (None if mask is None else mask.tolist()) == (flags if any(flags) else None)
