"""Whatever ends, is slow, or is done twice: every shard is settled once, and none is lost."""

import random

import pytest

from vggfeat.engines.handout import MOST_AT_A_TIME, Handout


def test_shards_are_given_in_order_and_fewer_towards_the_end():
    handout = Handout(range(100))
    sizes = []
    while handout.waiting:
        chunk = handout.take("a", 2)
        assert chunk == list(range(chunk[0], chunk[0] + len(chunk)))
        sizes.append(len(chunk))
        handout.finish("a")
    assert sum(sizes) == 100
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (MOST_AT_A_TIME, 1)


def test_who_is_free_is_given_the_last_shard_of_another_and_the_first_to_keep_it_wins():
    handout = Handout(range(16))
    assert handout.take("slow", 2) == [0, 1, 2, 3]
    while handout.waiting:
        handout.take("quick", 2)
        handout.finish("quick")
    assert handout.take("quick", 2) == [3]
    assert handout.settle(3)
    assert not handout.settle(3)  # the slow one, later
    handout.finish("quick")
    assert handout.take("quick", 2) == [2]
    assert handout.take("third", 3) == [1]
    assert handout.take("fourth", 4) == [0]
    assert handout.take("fifth", 5) == []  # each is computed by two
    assert not handout.done
    for shard in (0, 1, 2):
        assert handout.settle(shard)
    assert handout.done


def test_what_one_held_that_died_is_given_to_the_next_unless_another_has_it():
    handout = Handout(range(8))
    assert handout.take("a", 1) == [0, 1, 2, 3]
    assert handout.settle(0)
    assert handout.lose("a") == 1
    assert list(handout.waiting) == [1, 2, 3, 4, 5, 6, 7]
    assert handout.lose("a") is None
    alone = Handout([5])
    alone.take("a", 1)
    assert alone.take("b", 2) == [5]
    assert alone.lose("a") == 5
    assert not alone.waiting  # b has it
    assert alone.settle(5)
    assert alone.done


@pytest.mark.parametrize("seed", range(20))
def test_every_shard_is_settled_once_whatever_dies(seed):
    draw = random.Random(seed)
    handout, settled, busy = Handout(range(60)), [], {}
    while not handout.done:
        taker = draw.randrange(5)
        if taker not in busy:
            chunk = handout.take(taker, 5)
            if chunk:
                busy[taker] = iter(chunk)
        elif draw.random() < 0.1:
            handout.lose(taker)
            del busy[taker]
        elif (shard := next(busy[taker], None)) is None:
            handout.finish(taker)
            del busy[taker]
        elif handout.settle(shard):
            settled.append(shard)
    assert sorted(settled) == list(range(60))


def test_one_that_leaves_out_what_another_is_about_to_report_does_not_settle_it():
    handout = Handout([5])
    handout.take("a", 1)
    handout.take("b", 2)
    handout.finish("a")
    assert not handout.done
    assert handout.settle(5)
    assert handout.done


def test_what_was_kept_before_its_taker_came_to_it_is_settled_by_its_end():
    handout = Handout([5])
    handout.take("a", 1)
    handout.finish("a")
    assert handout.done
