"""What is left of a network's accuracy at a budget, beside Torch-Pruning and the reference's rule.

    PRUNELLA_DATA=../shared/data python -m benchmarks.accuracy no-finetune [--resume] [options]
    PRUNELLA_DATA=../shared/data python -m benchmarks.accuracy short [--resume] [options]
    PRUNELLA_DATA=../shared/data python -m benchmarks.accuracy ablation [--resume] [options]
    PRUNELLA_DATA=../shared/data python -m benchmarks.accuracy recipes [--resume] [options]
    PRUNELLA_DATA=../shared/data python -m benchmarks.accuracy rounds [--resume] [options]
    PRUNELLA_DATA=../shared/data python -m benchmarks.accuracy long --seeds 0 [--resume] [options]

`PRUNELLA_DATA` names the folder with CIFAR-10 and the pretrained weights; none of it is part of the
project. Torch-Pruning is `pip install torch-pruning==1.6.1`.

Protocol, the same for every method:

- Same checkpoint, same data, same training loop and epochs, last epoch (never the best on test),
  mean and spread over 3 seeds.
- Pretrained ResNet-20 and ResNet-56 for CIFAR-10 (shortcuts without parameters). Budget: at most
  so many of the dense network's MACs remain, counted by `prunella.count_macs` on the pruned
  network, whichever tool made it.
- Accuracy is top-1 on all 10,000 test images, forward passes under bf16 autocast on the CPU, one
  thread (the dense rows have float32 beside it).
- Calibration: unlabelled training images, not augmented, out of the 5,000 that the project's task
  `cifar10` holds out of training (the pretrained weights have seen them). The seed says which.
  Every method that looks at data gets the same images; those that need labels get them (Taylor,
  Hessian, the reference's rule).
- Nothing is chosen on test images, but in favour of Torch-Pruning: its settings are compared on
  {screen} of the calibration images with their labels; at each point, those within {margin} points
  of its best there are tested, and its best *on test* among them counts. That one alone is repeated
  with the other seeds. A row that depends on no data is computed once.
- *bn*: every batch norm's statistics are computed anew after pruning, on the calibration images,
  shifted and flipped as in training (as they are, they cost even the dense network points).
  Torch-Pruning does not do that by itself; it is the fairer peer.

`short` finetunes what every method left in the same way: Prunella's loop with the settings of its
task `cifar10`, on the 45,000 training images, 10 epochs of ResNet-20, 5 of ResNet-56. *Distilled*
from the dense network as is Prunella's default, or *plain*, from the labels alone. Torch-Pruning's
settings there: its recipe's, and those that were its best before finetuning (`no-finetune`).
Rows of 3 epochs: the same with `--epochs 3`, the rates falling within them.
`recipes` finetunes Prunella's alone, half as long, with one setting changed at a time. `rounds`
reaches a budget at once or in three rounds of pruning and finetuning, with the same number of
epochs in all: 12 of ResNet-20, 6 of ResNet-56; the columns of a row in rounds are of its last.
`long` trains Prunella's ResNet-56 for 25 epochs on all 50,000 images, as the literature does, at
two budgets that are common there.

Prunella is called once a budget, all at its defaults: `prunella.prune(model, example, macs=...)`,
and with `calibration=batches`, which sees no label; *inside*, with `exclude="conv1"` too, which
leaves the residual stream whole; *not repaired*, with `repair=False`: the same channels go.

Rows of Prunella with data that were made before damage was measured at a temperature
(`prunella.repairing.divergence.softened`): all of `short` but the default's for ResNet-56 at 50%,
and all of `ablation`, `recipes`, `rounds` and `long`.

Torch-Pruning 1.6.1 is driven as its own CIFAR recipe does (`reproduce/main.py`): the ratio rises in
400 steps to 1, importance is computed anew at each, no rounding, classifier ignored, until the
budget is met. We stop after the group of channels that meets it instead of after the step, which
leaves Torch-Pruning closer to the budget. Importances: of its recipe group magnitude L2
(`group_norm`), L1 (`l1`), L2 divided by its maximum (`group_sl`, without the sparse training),
FPGM, LAMP, batch-norm scale and random; further L1 of the first layer alone, Taylor and Hessian
(both from gradients of the dense network on the calibration images with labels; squared gradients
of single images are averaged by us, since `accumulate_grad` of 1.6.1 keeps the last image's alone).
Each globally and locally, on *all* channels and on those *inside* blocks alone. Not run: OBDC, and
what first trains with a sparsity penalty.

The reference's rule (Vitis AI Optimizer): channels ranked by the L1 norm of the group's first
convolution; each group alone pruned at 0.1 to 0.9, accuracy measured on the calibration images with
labels; a group gets the last ratio before its relative loss first exceeds a threshold; the
threshold is bisected for the budget. It runs on Prunella's groups: all of them, or inside blocks
alone, where the reference itself finds any on these networks (it drops what is strided without a
layer).
"""
