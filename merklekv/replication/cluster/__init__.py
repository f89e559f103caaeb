"""The cluster: who belongs to it, who is present, which writes a member lost."""
