import unittest

from readings import average, largest
from report import summary


class TestReadings(unittest.TestCase):
    def test_average(self):
        self.assertEqual(average([4, 6]), 5.0)
        self.assertEqual(average([1, 2]), 1.5)
        self.assertEqual(average([]), 0)

    def test_largest(self):
        self.assertEqual(largest([3, 9, 2]), 9)

    def test_summary(self):
        self.assertEqual(summary([1, 2]), "mean 1.5, max 2")


if __name__ == "__main__":
    unittest.main()
