"""How far an evaluation is, told batch by batch."""

from hf_bitdistill.evaluation.sharing import results_of, share_rows


def test_rows_are_told():
    told = []
    with share_rows(told.append):
        assert results_of(None, [[5, 6], [7]], sum) == [11, 7]
        # An evaluation within tells nobody, and the one around it goes on to be told.
        with share_rows():
            results_of(None, [[1], [2]], sum)
        assert told == [2, 3]
        results_of(None, iter([[1], [2]]), sum)
    results_of(None, [[1]], sum)
    assert told == [2, 3, 1, 2]
