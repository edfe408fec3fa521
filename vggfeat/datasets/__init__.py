"""Data sets: official trees and your own images become lists of samples."""
