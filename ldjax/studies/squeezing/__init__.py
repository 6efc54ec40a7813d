r"""The squeezing effect in one softmax: the paper's toy rows, and the exact border.

One input, a linear readout, one gradient step. A positive gradient lifts its label; a
negative one lowers it and gives the mass mostly to the likeliest other label, the more
so the peakier the distribution and the less probable the label that is pushed down.
`ldjax.theory.squeezing` knows exactly which labels rise: those above a threshold.

Then three sweeps (over the probability of the label pushed down, over peakiness, over
the size of the step) show that threshold between the labels that rise and that fall.

Claims, checked on every run (exit status 1 if one does not hold): in every row and at
every point of the sweeps exactly the labels above the threshold rise in a step that is
taken, the label pushed down falls and the likeliest other one rises; the changes are
those of Lemma 1; and with the default seed rows A to D have the numbers of the paper's
notebook. (Of row E the notebook's draws are not known, so only the claims.)

    python experiments/squeezing.py --out runs/squeezing           (seconds)

Found: rows A to D have the notebook's numbers (0.072 to 0.947, 0.0233 to 0.0011, 0.763
to 0.987 and to 0.986); in 128 steps exactly the labels above the threshold rise.
"""

__all__: list[str] = []
