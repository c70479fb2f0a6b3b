from readings import average, largest


def summary(values):
    return f"mean {average(values)}, max {largest(values)}"
