"""Image files in folders, zips or TensorFlow Datasets; in memory or streamed."""
