"""Results as a person reads them, as a program reads them, as an image, and as the VOC server takes them."""
