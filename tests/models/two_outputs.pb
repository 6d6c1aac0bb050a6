
;
aPlaceholder*
dtype0*
shape:ÿÿÿÿÿÿÿÿÿ
;
bPlaceholder*
dtype0*
shape:ÿÿÿÿÿÿÿÿÿ

sumAddV2ab*
T0
 

differenceSubab*
T0"Û