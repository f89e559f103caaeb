"""The protocols on the wire: bytes to requests, replies to bytes."""
