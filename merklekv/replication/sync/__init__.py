"""Sync: exchanges that compare Merkle trees and repair what is missing."""
