"""Models by name, and weights in and out.

- `registry`: `create_model("prance_small_patch16_224", weights=FILE)`.
- `pretrained`: opens weight files, folders and addresses of the Hugging Face hub (`hub`).
- `load`: weights of this package, timm, Hugging Face, OpenCLIP, big_vision and released PRANCE, detected by
  their names. What a public network computes and `ViT` does not is refused, see `families`.
- `extract`: one structure of a meta-network as a plain, smaller ViT.
- `from_dense`: a meta-network that starts at the weights of a dense ViT.
- `released_selector`: released PRANCE selectors.

Checked in configs/imagenet_base.md, relative errors of logits: timm 1.0.31 with random weights, at
most 2.1e-6; extracted 192x4 and 216x2 load into timm strictly, 1.2e-6. A file written and read
again is bit-identical. The tensor names of released PRANCE convert completely.
"""
