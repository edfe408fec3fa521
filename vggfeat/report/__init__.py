"""Results as a person reads them, as a program reads them, as a picture, and as the VOC server takes them."""
