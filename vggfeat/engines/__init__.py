"""Who computes which shards of a plan: this process alone, one of many that know their number, or another engine."""
