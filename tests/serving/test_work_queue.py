"""WorkQueue: equal items once, each job its share, and nothing left of a job that was forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from flipped_kd.serving.work_queue import Item, Job, WorkQueue


def items(keys: Sequence[int | str], tokens: int = 10) -> list[Item]:
    return [Item(key, f"content {key}", tokens) for key in keys]


def finish(queue: WorkQueue, budget: int) -> tuple[list[Job], list[object]]:
    """A round: the jobs that it finishes, and the keys that were computed."""
    chosen = queue.take(budget)
    finished = queue.settle(chosen, [f"value {entry.item.key}" for entry in chosen])
    queue.leave(chosen)
    return finished, [entry.item.key for entry in chosen]


def test_equal_items_are_computed_once() -> None:
    queue = WorkQueue()
    first, joined = queue.add(items("abca"))
    assert joined == 0 and queue.tokens == 30
    second, joined = queue.add(items("bcd"))
    assert joined == 2 and queue.tokens == 40 and queue.new_tokens(items("aee")) == 10
    finished, computed = finish(queue, 1000)
    assert sorted(computed) == list("abcd") and set(finished) == {first, second}
    assert first.values == ["value a", "value b", "value c", "value a"] and second.values[-1] == "value d"
    assert not queue.jobs and not queue._entries and queue.tokens == 0


def test_one_who_joins_while_an_item_is_computed_gets_its_value() -> None:
    queue = WorkQueue()
    first, _ = queue.add(items("a"))
    chosen = queue.take(1000)
    second, joined = queue.add(items("a"))
    assert joined == 1 and not queue.jobs and queue.tokens == 0
    assert queue.settle(chosen, ["value"]) == [first, second]


def test_one_who_comes_between_a_value_and_the_end_of_its_round_is_not_forgotten() -> None:
    queue = WorkQueue()
    first, _ = queue.add(items("ab"))
    chosen = queue.take(1000)
    assert not queue.settle(chosen[:1], ["value a"])  # as where a round failed, and each is read alone
    second, joined = queue.add(items("ab"))
    assert joined == 1 and queue.tokens == 10
    assert queue.settle(chosen[1:], ["value b"]) == [first]
    third, joined = queue.add(items("b"))
    queue.leave(chosen)
    assert joined == 0 and finish(queue, 1000) == ([second, third], ["a", "b"])
    assert not queue.jobs and not queue._entries and queue.tokens == 0


def test_what_failed_goes_back_for_those_who_joined_meanwhile() -> None:
    queue = WorkQueue()
    first, _ = queue.add(items("a"))
    chosen = queue.take(1000)
    second, _ = queue.add(items("a"))
    queue.forget(first)  # it has been told of the failure
    queue.leave(chosen)
    assert list(queue.jobs) == [second] and queue.tokens == 10
    assert finish(queue, 1000) == ([second], ["a"])


def test_a_large_job_leaves_room_for_small_ones_and_takes_what_they_leave() -> None:
    queue = WorkQueue()
    large, _ = queue.add(items(range(100)))
    small = [queue.add(items([f"small {number}"]))[0] for number in range(3)]
    finished, computed = finish(queue, 400)
    assert finished == small and len(computed) == 3 + 10  # of the oldest its share, a quarter
    finished, computed = finish(queue, 400)
    assert not finished and len(computed) == 40
    later, _ = queue.add(items(["later"]))
    assert finish(queue, 400)[0] == [later]
    assert finish(queue, 400)[0] == [large] and large.values == [f"value {number}" for number in range(100)]


def test_the_oldest_goes_on_however_many_small_ones_come() -> None:
    queue = WorkQueue()
    large, _ = queue.add(items(range(5)))
    for turn in range(5):
        for number in range(50):
            queue.add(items([f"{turn} {number}"]))
        finished, _ = finish(queue, 100)
    assert large in finished


def test_an_item_larger_than_a_round_is_a_round() -> None:
    queue = WorkQueue()
    job, _ = queue.add(items("ab", tokens=5000))
    assert finish(queue, 100) == ([], ["a"])
    assert finish(queue, 100) == ([job], ["b"])


def test_what_only_a_forgotten_job_waited_for_is_not_computed() -> None:
    queue = WorkQueue()
    gone, _ = queue.add(items("abb"))
    stays, _ = queue.add(items("bc"))
    assert queue.forget(gone) and not queue.forget(gone)
    assert queue.tokens == 20 and finish(queue, 1000) == ([stays], ["b", "c"])
    again, _ = queue.add(items("a"))
    assert finish(queue, 1000) == ([again], ["a"])


@given(
    jobs=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8), min_size=1, max_size=8),
    forgotten=st.sets(st.integers(0, 7)),
    budget=st.integers(1, 60),
)
def test_whatever_comes_and_goes_everybody_left_gets_all(
    jobs: list[list[int]], forgotten: set[int], budget: int
) -> None:
    queue = WorkQueue()
    added = [queue.add(items(keys))[0] for number, keys in enumerate(jobs)]
    chosen = queue.take(budget)
    for number in forgotten & set(range(len(jobs))):
        queue.forget(added[number])
    done = queue.settle(chosen, [f"value {entry.item.key}" for entry in chosen])
    queue.leave(chosen)
    computed = [entry.item.key for entry in chosen]
    while queue.jobs:
        finished, keys = finish(queue, budget)
        done, computed = done + finished, computed + keys
    left = [job for number, job in enumerate(added) if number not in forgotten]
    assert set(left) == set(done) and len(done) == len(left)
    assert all(job.values == [f"value {key}" for key in jobs[added.index(job)]] for job in left)
    assert len(set(computed)) == len(computed) and not queue._entries and queue.tokens == 0
