"""What the machine gives: durable files, locks, journals, processes, devices."""
