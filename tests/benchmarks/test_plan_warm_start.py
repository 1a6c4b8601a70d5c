"""What a warm start takes on a device is counted without memory, and is what real tensors take."""

import dataclasses

import plan_warm_start as plan


CASE = plan.Case(64, 96, 64, 4, 6, 2, 4, 2, 16)


def test_counted():
    counted = plan.planned(CASE)
    assert counted == plan.trained_bytes(CASE)
    # Adam's states of what is trained: of each matrix its low-rank update and its factors, and the vectors.
    rows = [64, 64, 64, 64, 96, 96, 64]
    columns = [64, 64, 64, 64, 64, 64, 96]
    pairs = list(zip(rows, columns, strict=True))
    trained = sum(4 * (r + c) + 2 * r * -(-c // 128) for r, c in pairs) + len(pairs) + 2 * 64 + 64 + 96
    assert counted["optimizer"] == 8 * 2 * trained
    assert counted["weights"] == 4 * 2 * (sum(r * c for r, c in pairs) + 2 * 64 + 64 + 96)
    deeper = plan.planned(dataclasses.replace(CASE, layers=24))
    wider = plan.planned(dataclasses.replace(CASE, window=4))
    assert deeper == counted
    # Weights are made again layer by layer, so that the most of a step grows with what is kept between them.
    assert wider["weights"] == 2 * counted["weights"] and counted["step"] < wider["step"] < 2 * counted["step"]
