"""An image file becomes RGB pixels, or one named reason why not; side by side in processes that may die."""
