def average(values):
    """Arithmetic mean, 0 for no values."""
    if not values:
        return 0
    return sum(values) // len(values)


def largest(values):
    best = values[0]
    for value in values:
        if value > best:
            best = value
    return best
