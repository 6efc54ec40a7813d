"""Why did the chosen answer fall? An exact account of it along preference optimisation.

Trains on pairs three times from the same policy: by plain gradient descent at a small
rate, where first order says everything, and at one that moves answers by nats, and with
the optimizer that one trains with, whose history then has most of the say. At every
update the measured change of each
watched chosen answer is split into what its own pair did to it (chosen side, rejected
side), what the other pairs of the batch did, the optimizer's history, weight decay and
the remainder. Along the way it is measured which labels an update lifts in the contexts
of the chosen and of the rejected answer, and where the mass goes (squeezing).

Exit status 1 if an identity fails (the parts sum to the prediction, the measured
changes to that of the whole run) or a claim, of the small rate: the parts without the
remainder explain R2 >= 0.95 of the measured changes of single updates; and, of losses
that push both sides equally, a step that is really taken on a pair alone lowers its
chosen answer where, and only where, <g+, g-> > |g+|^2, wherever first order is the
larger part.

With an optimizer that rescales (Adam), <g+, g-> > |g+|^2 is about the pair's own two
sides *as the batch's step scaled them*, without momentum: alone the pair would have
been scaled otherwise. How often a step on the pair alone agrees is reported beside it.

    python experiments/displacement.py --out runs/displacement     (toy world; ~6 min)
    python experiments/displacement.py --init runs/sft --loss ipo --out runs/ipo
    python experiments/displacement.py --data pairs.jsonl.gz --out runs/mine

Found: chosen falls by 9.2 nats by plain gradient descent (own chosen side +4.2, own
rejected side -2.1, other pairs -6.1, remainder -5.3), with Adam by 27.2, of which the
momentum -26.0. A pair's own two sides would lower its chosen answer in 0 to 5 % of
pairs and updates. Signs of labels are right in 99 to 100 % by exact first order, in 40
to 58 % if K were k I. All claims hold.
"""

__all__: list[str] = []
