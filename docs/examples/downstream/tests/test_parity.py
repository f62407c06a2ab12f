def test_parity(case, parity_check):
    parity_check(case)
