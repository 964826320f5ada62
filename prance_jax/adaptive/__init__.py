"""Per-image decisions executed so that they save time, and budgets.

Compiled programs have static shapes. So each group of layers is compiled for a few upper sizes, its
buckets. Images are sorted and split into chunks, and each chunk runs in the smallest bucket that
holds all of its images.

- `buckets`: what a bucket is, and which one an image needs.
- `choose_buckets`: buckets that cost the fewest MACs on calibration images.
- `executor`: runs PRANCE's decisions in buckets.
- `predictor_executor`: runs learned token predictors (SPViT, DynamicViT) in token buckets.
- `rounding`: a policy whose decisions are rounded up to buckets.
- `bucket_latency`: measured time of every bucket.
- `budget`: from a budget to the cost weight that meets it, and the certified budget.
- `calibrate`: collects decisions and measures a `BudgetTable` on held-out images.
"""
