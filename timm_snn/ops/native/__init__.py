"""C++ for a CPU, and how it is built."""
