"""The red team in the box: attacks a service with its guard and without it, and says in figures what they got."""
