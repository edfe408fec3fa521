"""ILSVRC classification (VGG paper, Sect. 3.2 and 4): posteriors of nets in files, their fusion, and the errors."""
