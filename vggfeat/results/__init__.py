"""Results as a page that a person opens in a browser: one file, without network, without scripts but for sorting."""
