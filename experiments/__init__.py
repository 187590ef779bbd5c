"""What belongs to the repository only: the studies, their findings and the benchmark.

`vagram study`, `vagram study --write_findings` and `vagram benchmark` run them.
"""
