"""What the analysis of all groups costs, and how good the cheap one is.

    PRUNELLA_DATA=../shared/data python -m benchmarks.analysis_cost [--resume] [names...]

Protocol:

- One thread, beside other work on the machine, which slows every second of it down. So *cheaper*
  compares CPU seconds as multiples of what one evaluation of the dense model on all of the images
  took just before and after. *Work* counts evaluations too, in multiply-accumulates of convolutions
  and linear layers.
- *plain*: every group alone at every ratio, each a full evaluation: `analyze(..., memory=0)`.
- *exact*: `analyze(...)`, which computes once what evaluations have in common. It is compared
  number by number with *plain*.
- *estimate*: `estimate(...)` with so many samples, the dense model and 4 cuts evaluated in full.
- *with slopes*: the same, with `labelled`: gradients of the loss on all of the images.
- *one pass*: as *estimate*, but distances are not measured: they are the sums of the diagonal
  Fisher information of the removed channels (`score(..., "fisher")`), from gradients with the
  labels.
- *early stop*: `analyze(..., confidence=0.95)` of the accuracy. *Off* is the share of its values
  that differ from *plain* by more than was to be known with that confidence.
- Channels go by `magnitude`. Curves are compared by Spearman's rank correlation over all groups and
  ratios, with the *plain* cross-entropy and with the *plain* accuracy. *halves* is the same between
  the two halves of the images of *plain* itself. By how much they disagree, not even a perfect
  prediction that has not seen these very images is expected to correlate with *plain* by more than
  the square root of `2 h / (1 + h)` (Spearman and Brown), which is shown as *at most*. What is
  *with slopes* has seen them.

Networks: ResNet-56 and ResNet-20 on test images of CIFAR-10, in bfloat16, calibrated with other
test images (they know those they were trained on by heart; both are judged on the same, and
ResNet-20 came last, when all settings of the estimate were fixed); and MobileNetV2 trained on 19
breeds of dogs (`dogs.py`), on pictures of animals of the ImageNet sample, where the dense network's
own decisions are taken as the labels, since few of the pictures show one of its breeds; calibrated
with others.
"""
