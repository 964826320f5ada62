"""Image files: folders, zips, TensorFlow Datasets; in memory or streamed."""
