"""Real speed: what is asked of time, and what the stopwatch says.

    python -m benchmarks.speed asked

For every network, runtime and batch size: a budget on latency of 1/1.5 and 1/2 of the dense
network's, and beside it a budget on multiply-accumulates of the same share. Both pruned networks
are timed side by side with the dense one, anew, after the plan is made. Weights are random, since
only time is looked at.
"""
