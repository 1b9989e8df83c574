//! gpuacct, the accountant of a GPU node.
