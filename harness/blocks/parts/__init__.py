"""What blocks are made of: branches, ways to compose kernels, mechanisms that several of them share. No blocks."""
