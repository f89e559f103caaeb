"""Scripts: Lua 5.1 in a closed sandbox, with limits of time and memory."""
