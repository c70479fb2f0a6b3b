import unittest

from stats import largest, mean


class TestStats(unittest.TestCase):
    def test_largest(self):
        self.assertEqual(largest([3, 8, 5]), 8)
        self.assertEqual(largest([4]), 4)

    def test_mean(self):
        self.assertEqual(mean([2, 4, 9]), 5)
        self.assertEqual(mean([]), 0)


if __name__ == "__main__":
    unittest.main()
