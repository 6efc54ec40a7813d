"""Why did the chosen answer fall? A balance of it along preference optimisation.

Trains on pairs three times from the same policy: by plain gradient descent at a small
rate, where first order says everything, and at one that moves answers by nats, and with
Adam. The change of each watched chosen answer over the whole run is divided among all
pairs of all updates, by way of the optimizer's momentum: its own pair, the other pairs,
either side of both, what was there before, and weight decay (`ledger_RATE/`; see
docs/theory/ledger.md). Along the way it is measured which labels an update lifts in the
contexts of the chosen and of the rejected answer, and where the mass goes (squeezing).

Exit status 1 if an identity fails (the balance closes: all origins sum to the change of
the whole run, and the nodes along the updates leave nothing) or a claim, of the small
rate: first order explains R2 >= 0.95 of the measured changes of single updates; and, of
losses that push both sides equally, a step that is really taken on a pair alone lowers
its chosen answer where, and only where, <g+, g-> > |g+|^2, wherever first order is the
larger part.

With an optimizer that rescales (Adam), <g+, g-> > |g+|^2 is about the pair's own two
sides *as the batch's step scaled them*, without momentum: alone the pair would have
been scaled otherwise. How often a step on the pair alone agrees is reported beside it.

    python experiments/displacement.py --out runs/displacement     (toy world; ~6 min)
    python experiments/displacement.py --init runs/sft --loss ipo --out runs/ipo
    python experiments/displacement.py --data pairs.jsonl.gz --out runs/mine

Found: chosen falls by 9.2 nats by plain gradient descent and by 27.2 with Adam, both
times by the other pairs: with Adam a pair's own two sides lift its chosen answer by 7.9
nats (chosen side +21.7, rejected side -13.8), and the other pairs take 35.1. A pair's
own two sides would lower its chosen answer in 0 to 5 % of pairs and updates. Signs of
labels are right in 99 to 100 % by exact first order, in 40 to 58 % if K were k I. All
claims hold.
"""

__all__: list[str] = []
