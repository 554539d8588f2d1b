"""What the operating system gives us: listening sockets, the service manager, the C library's memory."""
