"""Public families of pretrained ViTs: their tensor names, configs and architecture names.

- `names`: tensor names of timm, Hugging Face, OpenCLIP and the original repositories.
- `canonical`: those names as timm's, with LayerScale folded and missing biases as zeros.
- `config`: `PretrainedConfig`, what a network computes.
- `architectures`: timm's architecture names.
- `config_json`: config.json of timm and Hugging Face.
- `describe`: a `PretrainedConfig` of tensors, config.json and architecture name; what is not supported is
  refused by name.
"""
