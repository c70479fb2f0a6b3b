def mean(values):
    """Return the mean, or 0 for an empty list."""
    if not values:
        return 0
    return sum(values) / len(values)


def largest(values):
    """Return the largest value."""
    best = values[0]
    for value in values:
        if value < best:
            best = value
    return best
