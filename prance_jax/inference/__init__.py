"""A trained workdir as a function of images, in process and exported."""
