"""What the analysis of all groups costs, and how good the cheap one is.

    PRUNELLA_DATA=../shared/data python -m benchmarks.analysis_cost [--resume] [names...]

Protocol:

- One thread; the costs are CPU seconds of the process (and, for what they are worth beside other
  work on the machine, seconds on the clock). An *evaluation* is the CPU time of evaluating the
  dense model once, the median of three.
- *plain*: every group alone at every ratio, each a full evaluation: `analyze(..., memory=0)`.
- *exact*: `analyze(...)`, which computes once what evaluations have in common. It is compared
  number by number with *plain*.
- *estimate*: `estimate(...)` with so many samples, the dense model and 6 cuts evaluated in full.
- *one pass*: the same, but distances are not measured: they are the sums of the diagonal Fisher
  information of the removed channels (`score(..., "fisher")`), from gradients without labels.
- Curves are compared by Spearman's rank correlation over all groups and ratios, with the *plain*
  cross-entropy and with the *plain* accuracy. *halves* is the same between the two halves of the
  images of *plain* itself: what noise leaves of it.

Networks: ResNet-56 with trained weights on 500 of CIFAR-10's training images (calibration: other
training images), and EfficientNet-Lite0, a MobileNetV2 without the attention of its larger
relatives, on pictures of the ImageNet sample (calibration: other pictures). There are no trained
weights of MobileNetV2 itself here; `mobilenet_v2` is torchvision's with random weights, for cost
and exactness alone.
"""
