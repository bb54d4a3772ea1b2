"""What the fleet shares: records, events and cancels in Redis."""
