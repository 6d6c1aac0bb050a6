
;
aPlaceholder*
dtype0*
shape:ÿÿÿÿÿÿÿÿÿ
;
bPlaceholder*
dtype0*
shape:ÿÿÿÿÿÿÿÿÿ

mulMulab*
T0"Û