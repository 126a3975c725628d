"""What a pass remembers saves work and changes nothing: every decision of random histories, made with and without it."""

from __future__ import annotations

import pytest

from cotenant.core.memo import Memo
from tests.soak.history import History


@pytest.mark.parametrize("seed", range(9000, 9012))
def test_a_decision_is_the_same_whatever_is_remembered(seed: int) -> None:
    history = History(seed)
    history.tally.doubt = 1.0

    outcome = history.run()

    assert not outcome.broken
    assert outcome.passes > 5


def test_what_was_not_asked_for_in_a_pass_is_forgotten() -> None:
    memo, record, work = Memo(), object(), iter(range(9))

    def ask() -> int:
        return memo.of("n", (record,), (), lambda: next(work))

    assert [ask(), ask()] == [0, 0]
    memo.turn()
    assert ask() == 0
    memo.turn()
    memo.turn()
    assert ask() == 1


def test_an_answer_holds_until_the_clock_says_otherwise() -> None:
    memo, record, work = Memo(), object(), iter(range(9))

    def ask(now: float) -> int:
        return memo.until("n", (record,), now, lambda: (next(work), now + 10))

    assert [ask(100), ask(109), ask(110), ask(119), ask(105)] == [0, 0, 1, 1, 2]


def test_equal_questions_have_one_answer() -> None:
    memo, work = Memo(), iter(range(9))
    assert [memo.equal("n", [1, 2], lambda: next(work)) for _ in range(2)] == [0, 0]
    memo.turn()
    assert memo.equal("n", [1, 2], lambda: next(work)) == 0
    assert memo.equal("n", [1, 3], lambda: next(work)) == 1
