"""The embedded endpoint: the vendor's interface on loopback, free, with latency, limits and faults to order.

server     the class that listens, and the choice of a port
app        the two addresses: the paid call and the pictures it sold
answers    what goes back, byte for byte
gallery    pictures as they are fetched
orders     what a paid request may say
config     prices, latency, limits, shares of faults; read from the command line's forms
faults     what can go wrong, and when: drawn from the request itself
throttle   rate, queue and balance
charges    the log of what was sold: ground truth for every test of money
medium     the log's file, or memory
pictures   a PNG that shows its prompt
"""
