from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.trainer.features import ROWS, batch, draw, select
from trainer.config import DistillConfig
from trainer.losses import DistillLoss, Features, RelationQueue

SOME_TEXT = [1, 0, 1, 1, 0, 1, 1, 1]


def joined(a: Features, b: Features) -> Features:
    names = ("point", "image", "text", "has_text", "row")
    point, image, text, flags, row = (
        torch.cat([getattr(a, name), getattr(b, name)]) for name in names
    )
    return Features(point, image, text, flags, row=row)


def other(seed: int, first_row: int = 500) -> Features:
    """A batch of other objects, the second without text."""
    f = batch([1, 0] + [1] * (ROWS - 2))
    assert f.image is not None
    assert f.text is not None
    return replace(
        f,
        point=f.point + draw(seed),
        image=f.image + draw(seed + 1),
        text=f.text + draw(seed + 2),
        row=torch.arange(ROWS) + first_row,
    )


def make(**options: Any) -> DistillLoss:
    return DistillLoss(DistillConfig(**options), width=6).double()


def test_queue__keeps_the_last_objects_only() -> None:
    queue = RelationQueue(6, 6, ("image", "text")).double()
    assert len(queue.after(batch())) == ROWS
    pushed = [select(other(seed, 100 * seed), [0, 1, 2, 3]) for seed in (1, 2, 3)]
    for place, features in enumerate(pushed):
        queue.push(features)
        assert len(queue) == min(4 * (place + 1), 6)
    rows = queue.after(batch()).row
    assert rows is not None
    assert set(rows[ROWS:].tolist()) == {202, 203, 300, 301, 302, 303}
    kept = queue.after(batch())
    for place, row in enumerate(rows[ROWS:].tolist()):
        source = pushed[row // 100 - 1]
        for name in ("point", "image", "text", "has_text"):
            expected = getattr(source, name)[row % 100]
            assert torch.equal(getattr(kept, name)[ROWS + place], expected), name


def test_queue__growing_makes_no_graph_of_each_size() -> None:
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    loss = make(queue=10 * ROWS)
    compiled = torch.compile(loss, backend=backend)
    for step in range(12):
        features = other(step, 100 * step)
        expected = loss(features)[0]
        assert torch.allclose(compiled(features)[0], expected)
        loss.remember(features)
        if step == 3:
            early = len(graphs)
    assert len(graphs) == early


def test_queue__of_a_larger_batch_keeps_its_last_rows() -> None:
    queue = RelationQueue(3, 6, ("image",)).double()
    queue.push(other(1, 0))
    rows = queue.after(batch()).row
    assert rows is not None
    assert sorted(rows[ROWS:].tolist()) == [5, 6, 7]
    assert queue.after(batch()).text is None


@pytest.mark.parametrize("options", [{}, {"centre": "both"}, {"discrepancy": "l2"}], ids=str)
def test_distill__queue_equals_rows_of_a_larger_batch(options: dict[str, Any]) -> None:
    """The first rows of a joined batch see the same columns."""
    f, past = batch(SOME_TEXT), other(20)
    loss = make(queue=16, **options)
    loss.remember(past)
    _, given = loss(f)
    whole = joined(f, past)
    plain = make(**options)
    _, expected = plain(select(whole, list(range(ROWS))), whole, 0)
    # The share is divided by the rows (or pairs) of the joined batch; here rows are those of f.
    for name in given:
        ratio = float(given[name].detach()) / float(expected[name].detach())
        relation = name.removeprefix("neighbours_")
        text = relation != "intra_image"
        rows, more = (sum(SOME_TEXT), ROWS - 1) if text else (ROWS, ROWS)
        columns = rows + more - (0 if "cross" in relation else 1)
        by_pairs = options.get("discrepancy") == "l2" and relation == name
        counted = (rows + more) * columns / (rows * columns) if by_pairs else (rows + more) / rows
        assert ratio == pytest.approx(counted), name


def test_distill__queue_changes_the_value_once_it_holds_something() -> None:
    f, loss = batch(), make(queue=16)
    empty = float(loss(f)[0].detach())
    assert empty == pytest.approx(float(make()(f)[0].detach()))
    loss.remember(other(20))
    assert float(loss(f)[0].detach()) != pytest.approx(empty, rel=1e-3)


def test_distill__queue_gets_no_gradient_and_survives_many_steps() -> None:
    loss = make(queue=12)
    for step in range(4):
        point = draw(step).requires_grad_(True)
        features = batch(point=point)
        total, _ = loss(features)
        total.backward()
        loss.remember(features)
        assert point.grad is not None
        assert bool(point.grad.isfinite().all())
    assert all(not buffer.requires_grad for buffer in loss.buffers())


def test_distill__an_objects_older_self_is_left_out_of_intra_relations() -> None:
    """With the diagonal masked, a queue of the same objects adds everything but themselves."""
    f = batch()
    loss = make(queue=ROWS)
    loss.remember(f)
    _, found = loss(f)
    # Every column stands twice: probabilities are halved on both sides, and so is nothing else.
    _, once = make()(f)
    assert float(found["intra_image"].detach()) == pytest.approx(
        float(once["intra_image"].detach())
    )
    strangers = make(queue=ROWS)
    strangers.remember(replace(f, row=torch.arange(ROWS) + 900))
    _, with_self = strangers(f)
    assert float(with_self["intra_image"].detach()) != pytest.approx(
        float(once["intra_image"].detach()), rel=1e-3
    )


def test_queue__state_goes_on_where_it_stood() -> None:
    loss = make(queue=12)
    loss.remember(other(1))
    loss.remember(other(5))
    again = make(queue=12)
    again.load_state_dict(loss.state_dict())
    f = batch()
    assert torch.equal(loss(f)[0], again(f)[0])
    for item in (loss, again):
        item.remember(other(9))
    assert torch.equal(loss(f)[0], again(f)[0])


def test_queue__needs_the_width() -> None:
    with pytest.raises(ValueError, match="width"):
        DistillLoss(DistillConfig(queue=4))


def test_queue__off_leaves_the_state_as_it_was() -> None:
    assert set(DistillLoss(DistillConfig()).state_dict()) == {"weighting.logits"}


def test_queue__keeps_no_modality_that_nothing_reads() -> None:
    config = DistillConfig(queue=4, intra_text=False, cross_rows="same", cross_text=False)
    loss = DistillLoss(config, width=6).double()
    assert loss.queue is not None
    assert loss.queue.modalities == ("image",)
    f = replace(batch(), text=None, has_text=torch.zeros(ROWS, dtype=torch.bool))
    loss.remember(f)
    assert bool(loss(f)[0].isfinite())


def test_queue__after_a_larger_batch_the_oldest_go_first() -> None:
    queue = RelationQueue(5, 6, ("image", "text")).double()
    queue.push(batch())  # rows 100 to 107: keeps 103 to 107
    queue.push(select(replace(batch(), row=torch.arange(ROWS) + 200), [0, 1]))
    rows = queue.after(batch()).row
    assert rows is not None
    assert set(rows[ROWS:].tolist()) == {105, 106, 107, 200, 201}
